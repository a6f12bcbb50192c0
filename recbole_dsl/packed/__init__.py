"""Storage of sparse weights in plain torch; importable without RecBole."""
