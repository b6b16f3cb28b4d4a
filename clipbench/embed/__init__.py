"""Items to unit rows: numpy arrays are the currency from here on."""
