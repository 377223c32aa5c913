"""Published models at work: predictions and exported files."""
