package trustee

import "strings"

// ParseFingerprint returns the 40 upper-case hexadecimal digits of an OpenPGP fingerprint. It takes them in
// groups, as gpg prints them, and after the kind of key, as in keytrustee.conf ("4096R/...").
func ParseFingerprint(s string) (fingerprint string, ok bool) {
	if _, digits, kind := strings.Cut(s, "/"); kind {
		s = digits
	}
	s = strings.ToUpper(strings.ReplaceAll(s, " ", ""))
	return s, len(s) == 40 && strings.Trim(s, "0123456789ABCDEF") == ""
}
