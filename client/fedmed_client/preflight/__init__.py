"""What a site should know before it takes part: its cohort, what is odd in it, and the fix. Nothing of it leaves the site."""
