"""Weights of the Shapley value: of all subsets of modalities (`weights`) or of drawn ones (`sampling`)."""
