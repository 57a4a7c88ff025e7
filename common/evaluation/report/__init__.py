"""Pictures for people: the page about a trained model, and its parts."""
