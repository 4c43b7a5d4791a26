"""The process that trains: kept warm, asked over a socket that only this machine's user can open."""
