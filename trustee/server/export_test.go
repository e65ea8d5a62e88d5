package server

// Limits of the server, for tests.
const (
	GuessBurst      = guessBurst
	MaxUUIDs        = maxUUIDs
	SweepStoreEvery = sweepStoreEvery
	BodyTime        = bodyTime
)
