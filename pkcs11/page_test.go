package pkcs11

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	p11 "github.com/miekg/pkcs11"

	"claviger/internal/softhsm/softhsmtest"
)

// vendorPages are the pages of docs/hsm, and the profile that each describes.
var vendorPages = map[string]Profile{"softhsm": SoftHSM, "luna": Luna, "nshield": NCipher, "cloudhsm": CloudHSM,
	"generic": Generic}

func readVendorPage(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile("../docs/hsm/" + name + ".md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// tableOn returns the rows of the table with this header on a page, without the header and the rule below it.
func tableOn(t *testing.T, page, header string) []string {
	t.Helper()
	_, rest, ok := strings.Cut(page, "\n"+header+"\n")
	if !ok {
		t.Fatalf("the page has no table %q", header)
	}
	table, _, _ := strings.Cut(rest, "\n\n")
	return strings.Split(table, "\n")[1:]
}

// TestProfilePages: each page of docs/hsm has the values of its profile, and each profile has a page.
func TestProfilePages(t *testing.T) {
	described := make(map[Profile]bool)
	for page, name := range vendorPages {
		described[name] = true
		of := profiles[name]
		yesNo := map[bool]string{true: "yes", false: "no"}
		var mechanisms []string
		for _, m := range of.mechanisms {
			mechanisms = append(mechanisms, "`"+mechanismName(m)+"`")
		}
		want := []string{
			"| mechanisms, in this order | " + strings.Join(mechanisms, ", ") + " |",
			fmt.Sprintf("| `max-sessions` without a line in the keystore file | %d |", of.sessions),
			fmt.Sprintf("| bytes in one `C_Encrypt`, at most | %d |", of.dataLimit),
			fmt.Sprintf("| calls with one key at the same time | %d |", of.inFlight),
			"| `CKA_MODIFIABLE` = false is requested | " + yesNo[of.modifiable] + " |",
			"| calls that make, destroy or search objects run one at a time | " + yesNo[of.oneObjectCall] + " |",
		}
		got := tableOn(t, readVendorPage(t, page), "| value | profile `"+string(name)+"` |")
		if !slices.Equal(got, want) {
			t.Errorf("docs/hsm/%s.md has\n%s\nwant\n%s", page, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	for _, p := range Profiles() {
		if !described[p] {
			t.Errorf("no page of docs/hsm describes the profile %s", p)
		}
	}
}

// templateReader keeps the template of the last AES key on the token.
type templateReader struct {
	Boundary
	mu   *sync.Mutex
	last *[]*p11.Attribute
}

func (r templateReader) GenerateKey(s p11.SessionHandle, m []*p11.Mechanism,
	a []*p11.Attribute) (p11.ObjectHandle, error) {
	if slices.ContainsFunc(a, func(a *p11.Attribute) bool { return a.Type == p11.CKA_ID }) {
		r.mu.Lock()
		*r.last = slices.Clone(a)
		r.mu.Unlock()
	}
	return r.Boundary.GenerateKey(s, m, a)
}

// keyAttributes are the names of the attributes of a key that have no name in attributeNames.
var keyAttributes = map[uint]string{p11.CKA_CLASS: "CKA_CLASS", p11.CKA_KEY_TYPE: "CKA_KEY_TYPE",
	p11.CKA_VALUE_LEN: "CKA_VALUE_LEN", p11.CKA_ID: "CKA_ID", p11.CKA_LABEL: "CKA_LABEL", p11.CKA_TOKEN: "CKA_TOKEN",
	p11.CKA_PRIVATE: "CKA_PRIVATE", p11.CKA_SENSITIVE: "CKA_SENSITIVE", p11.CKA_EXTRACTABLE: "CKA_EXTRACTABLE",
	p11.CKA_ENCRYPT: "CKA_ENCRYPT", p11.CKA_DECRYPT: "CKA_DECRYPT"}

// templateRow returns the row of docs/hsm/generic.md for an attribute of the template of a key.
func templateRow(t *testing.T, a *p11.Attribute) string {
	name, optional := attributeNames[a.Type]
	if !optional {
		name = keyAttributes[a.Type]
	}
	value := map[uint]string{p11.CKA_VALUE_LEN: "16, 24 or 32", p11.CKA_ID: "8 random bytes",
		p11.CKA_LABEL: "the name of the version, such as `finance@0`"}[a.Type]
	switch {
	case value != "":
	case a.Type == p11.CKA_CLASS && a.Value[0] == p11.CKO_SECRET_KEY:
		value = "`CKO_SECRET_KEY`"
	case a.Type == p11.CKA_KEY_TYPE && a.Value[0] == p11.CKK_AES:
		value = "`CKK_AES`"
	case len(a.Value) == 1:
		value = fmt.Sprint(a.Value[0] != 0)
	default:
		t.Errorf("attribute %#x has the value %x", a.Type, a.Value)
	}
	if optional {
		value += ", optional"
	}
	if a.Type == p11.CKA_MODIFIABLE {
		value += ", not with `softhsm`"
	}
	return "| `" + name + "` | " + value + " |"
}

// TestTemplateOnPage: docs/hsm/generic.md shows the template of a key as the library gets it, with each profile.
func TestTemplateOnPage(t *testing.T) {
	page := tableOn(t, readVendorPage(t, "generic"), "| attribute | value |")
	made := softhsmtest.New(t)
	for i, name := range Profiles() {
		var mu sync.Mutex
		var last []*p11.Attribute
		c := config(made)
		c.Profile = name
		c.Wrap = func(b Boundary) Boundary { return templateReader{b, &mu, &last} }
		tok, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		if err := tok.GenerateKey(t.Context(), []byte{1, 2, 3, 4, 5, 6, 7, byte(i)}, "finance@0", 256); err != nil {
			t.Fatal(err)
		}
		if err := tok.Close(); err != nil {
			t.Fatal(err)
		}
		var got []string
		mu.Lock()
		for _, a := range last {
			got = append(got, templateRow(t, a))
		}
		mu.Unlock()
		want := slices.DeleteFunc(slices.Clone(page), func(row string) bool {
			return name == SoftHSM && strings.Contains(row, "not with `softhsm`")
		})
		if !slices.Equal(got, want) {
			t.Errorf("%s: the template is\n%s\ndocs/hsm/generic.md has\n%s", name, strings.Join(got, "\n"),
				strings.Join(want, "\n"))
		}
	}
}

// TestFunctionsOnPage: docs/hsm/generic.md lists the functions of the library that this package can call, and no other.
func TestFunctionsOnPage(t *testing.T) {
	_, text, ok := strings.Cut(readVendorPage(t, "generic"), "\n- start and login: ")
	if !ok {
		t.Fatal("docs/hsm/generic.md has no list of functions")
	}
	text, _, _ = strings.Cut(text, "\n\n")
	listed := map[string]bool{}
	for i, word := range strings.Split(text, "`") {
		if i%2 == 1 && strings.HasPrefix(word, "C_") {
			listed[word] = true
		}
	}
	called := map[string]bool{"C_GetFunctionList": true, "C_EncryptInit": true, "C_SignInit": true} // by the binding
	for f := range reflect.TypeFor[Boundary]().Methods() {
		called["C_"+f.Name] = true
	}
	if !reflect.DeepEqual(listed, called) {
		t.Errorf("docs/hsm/generic.md lists %v, and the package calls %v", listed, called)
	}
}
