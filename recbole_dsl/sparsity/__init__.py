"""The theory of dynamic sparse learning in plain torch; importable without RecBole."""
