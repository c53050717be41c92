"""Long attention: one operator, three ways of running it (`reference`, `tiles`, `flex`)."""
