//go:build !race

package census_test

const raceDetector = false
