"""Figures, from run folders."""
