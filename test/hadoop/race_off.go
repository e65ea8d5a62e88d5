//go:build !race

package hadoop

const raceDetector = false
