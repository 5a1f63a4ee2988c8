"""REIC: reward-based input construction for cross-document relation extraction."""
