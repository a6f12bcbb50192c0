"""Sparse training on top of RecBole's trainers."""
