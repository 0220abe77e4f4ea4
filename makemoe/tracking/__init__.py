"""What a run writes down: metrics, samples, pictures, and the trackers that get them."""
