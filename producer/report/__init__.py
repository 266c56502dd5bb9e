"""`capflow report`: a folder of static pages that shows the captions of a run."""
