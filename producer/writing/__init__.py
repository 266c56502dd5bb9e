"""Write caption files and the other export formats; each file appears whole or not at all."""
