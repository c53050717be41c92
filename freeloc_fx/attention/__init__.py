"""Long attention: one operator, four ways of running it (`reference`, `tiles`, `calls`, `flex`)."""
