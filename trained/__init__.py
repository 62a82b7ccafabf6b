"""Weights, graphs and cards of the trained networks, as package data."""
