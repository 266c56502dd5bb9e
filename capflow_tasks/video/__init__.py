"""Videos: which frames the model gets, and how a file is opened, measured, played and cut."""
