"""What a network is given: its arguments by modality, what an absent input is, and the rows of a masked batch."""
