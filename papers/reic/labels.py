"""What figures and pages call methods and settings, in the order in which they show them."""

LABELS = {
    "reic": "REIC",
    "filter": "bridge filter",
    "snippet": "snippet",
    "random": "random",
    "oracle": "oracle, random fill",
    "similarity": "similarity",
    "nearest": "nearest",
    "first": "first",
    "oracle_triggers": "oracle, trigger fill",
    "reic_cold": "REIC, no warm-up",
    "reic_stateless": "REIC, no LSTM state",
    "reic_shuffled": "REIC, shuffled rewards",
    "reic_frozen": "REIC, frozen selector",
}

SETTINGS = {
    "end_to_end/dense": "end-to-end, 3 distractors",
    "end_to_end/sparse": "end-to-end, 1 distractor",
    "ecrim/dense": "ECRIM-like, 3 distractors",
}
