"""Hosts, where ranks are placed on them, and what starts them there."""
