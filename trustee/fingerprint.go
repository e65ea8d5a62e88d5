package trustee

import "strings"

// ParseFingerprint returns the 40 upper-case hexadecimal digits of an OpenPGP fingerprint. The digits may be in
// groups, as gpg prints them, and the kind of the key may come first, as in keytrustee.conf ("4096R/...").
func ParseFingerprint(s string) (fingerprint string, ok bool) {
	if _, digits, kind := strings.Cut(s, "/"); kind {
		s = digits
	}
	s = strings.ToUpper(strings.ReplaceAll(s, " ", ""))
	return s, len(s) == 40 && strings.Trim(s, "0123456789ABCDEF") == ""
}
