"""Where people work beside diffusers: one module a host, imported by the host, which this library does not need."""
