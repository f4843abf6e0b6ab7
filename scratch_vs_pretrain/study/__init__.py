"""A study: what is compared, how fairly, in which runs."""
