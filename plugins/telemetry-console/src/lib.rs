//! Records on standard error: pretty on a terminal, JSON lines otherwise.
