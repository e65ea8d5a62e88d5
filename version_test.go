package claviger_test

import (
	"testing"

	"claviger"
)

// TestVersionNumber: a number is decimal as Java prints it, and the number + 1 must fit into a Java int. All other ids
// are opaque, also an id of 16 hexadecimal digits that are all decimal.
func TestVersionNumber(t *testing.T) {
	for version, want := range map[string]int{
		"k@0": 0, "k@7": 7, "k@10": 10, "a@5@3": 3, "@@1": 1, "k@2147483646": 2147483646,
		"k@2147483647": -1, "k@2147483648": -1, "k@99999999999999999999": -1, "k@1234567890123456": -1,
		"k@": -1, "@0": -1, "k": -1, "": -1, "k@00": -1, "k@01": -1, "k@+1": -1, "k@-1": -1, "k@-0": -1, "k@1 ": -1,
		"k@0x1": -1, "k@1e1": -1, "k@١": -1, "k@a0f1000000000001": -1,
	} {
		n, ok := claviger.VersionNumber(version)
		if ok != (want >= 0) || ok && n != want {
			t.Errorf("%q: %d, %t; want %d", version, n, ok, want)
		}
	}
	for _, tt := range []struct {
		newest      string
		count, want int
	}{{"0", 1, 1}, {"6", 2, 7}, {"a0f1000000000001", 3, 3}, {"1234567890123456", 3, 3}} {
		if got := claviger.CountVersions(tt.newest, tt.count); got != tt.want {
			t.Errorf("newest %s of %d: %d, want %d", tt.newest, tt.count, got, tt.want)
		}
	}
}

// TestParseVersion: the last '@' separates key and id, and Name returns the same bytes.
func TestParseVersion(t *testing.T) {
	for name, want := range map[string][2]string{
		"k@0": {"k", "0"}, "a@b@c": {"a@b", "c"}, "@@1": {"@", "1"}, "k@00112233aabbccdd": {"k", "00112233aabbccdd"},
		"\xff\x00@\xfe": {"\xff\x00", "\xfe"}, "k@ 0": {"k", " 0"},
		"": {}, "@": {}, "@@": {}, "k": {}, "k@": {}, "@0": {}, "a@b@": {},
	} {
		v := claviger.ParseVersion(name)
		if v.Key != want[0] || v.ID != want[1] || v.Valid() != (want[0] != "") || v.Name() != name {
			t.Errorf("ParseVersion(%q) = key %q, id %q, valid %v, name %q; want %q", name, v.Key, v.ID, v.Valid(),
				v.Name(), want)
		}
		if v.Valid() && claviger.VersionName(v.Key, v.ID) != name {
			t.Errorf("key and id of %q do not give the name again", name)
		}
	}
}
