"""What looks at all updates of a round before they are combined, one rule a file."""
