"""Commands that draw the scenes and train the networks of the text-to-image testbed."""
