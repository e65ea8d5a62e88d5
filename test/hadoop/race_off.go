//go:build !race

package hadoop

// RaceDetector says whether the test and its programs are built with the race detector.
const RaceDetector = false
