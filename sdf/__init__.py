"""Documents: templates, slots, calls to the writer, gates, and the corpora made from them."""
