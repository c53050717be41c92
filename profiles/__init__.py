"""Shipped profiles, one JSON file a model; `freeloc_fx.Profile.load(name)` reads them by file name without ".json"."""
