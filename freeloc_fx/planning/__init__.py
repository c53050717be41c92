"""Profiles, and the plan that is made of one for an input shape."""
