"""One file per RecBole model that needs settings of its own."""
