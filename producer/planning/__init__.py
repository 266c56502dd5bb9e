"""From a metafile to a split plan."""
