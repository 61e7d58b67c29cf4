"""`gworker init`: a starter app, kept as the file it is written as."""
