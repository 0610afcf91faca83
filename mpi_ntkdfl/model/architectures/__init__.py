"""The modules of the built-in networks. `model/kinds/` has their settings."""
