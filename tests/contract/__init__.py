"""Contracts: what holds for the whole code base, checked by reading it."""
