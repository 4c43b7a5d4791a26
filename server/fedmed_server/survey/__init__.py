"""What a consortium knows of its images before it trains: asked of all sites, told as a data sheet, planned from."""
