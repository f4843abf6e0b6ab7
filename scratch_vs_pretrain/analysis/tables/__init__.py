"""Tables, from run folders."""
