// Package packages tests the .deb and the .rpm: what is in them, that the same input gives the same bytes, and that
// they can be installed, upgraded, removed and purged in a small Debian. There the server runs from the installed
// files.
//
// The tests need root and the programs that `scripts/setup all` installs. Without the programs they are skipped, or
// fail if CLAVIGER_REQUIRE_PACKAGES is 1. CLAVIGER_PACKAGES names a folder with packages to test; without it the tests
// make some of the program that other tests use.
package packages
