"""The data contract: one JSON, its records and files, all that can be wrong with them."""
