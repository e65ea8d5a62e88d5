package keystore

import (
	"bytes"
	"crypto/sha1"
	"crypto/subtle"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode/utf16"

	"claviger"
	"claviger/secret"
)

const (
	jceksMagic   = 0xcececece
	jceksVersion = 2
	// MaxJCEKS is the largest size of a keystore file, in bytes. It is enough for about 100,000 key versions.
	MaxJCEKS = 64 << 20

	// jceksMinEntry is the length of the shortest entry: tag, empty alias, date, a length.
	jceksMinEntry  = 4 + 2 + 8 + 4
	maxCertificate = 1 << 20
	maxChain       = 100
)

// EntryKind is the tag of a keystore entry.
type EntryKind int

// The kinds of entries, as JceKeyStore numbers them.
const (
	PrivateKeyEntry  EntryKind = 1
	CertificateEntry EntryKind = 2
	SecretKeyEntry   EntryKind = 3
)

// Secret is the content of a secret-key entry: Hadoop's metadata of a key if HadoopMetadata is not nil, and otherwise a
// key.
type Secret struct {
	Algorithm      string // as given to SecretKeySpec; Hadoop puts the full cipher here
	Material       secret.Bytes
	HadoopMetadata []byte // JSON
}

// Entry is one entry of a JCEKS. It never changes. Its secret is encrypted; Open decrypts it.
type Entry struct {
	Alias   string
	Created time.Time // millisecond precision
	Kind    EntryKind

	raw    []byte   // the bytes of the entry after the date
	sealed sealed   // of a SecretKeyEntry
	chain  [][]byte // DER, of the other kinds
	key    []byte   // EncryptedPrivateKeyInfo of a PrivateKeyEntry
}

// Equal reports whether two entries are the same, byte for byte.
func (e *Entry) Equal(o *Entry) bool {
	return e.Alias == o.Alias && e.Kind == o.Kind && e.Created.Equal(o.Created) && bytes.Equal(e.raw, o.raw)
}

// Open decrypts a secret-key entry. This takes 60 to 80 ms with the iteration count of current JDKs. It returns
// ErrPassword (wrapped) if the password is wrong.
func (e *Entry) Open(password secret.Bytes) (Secret, error) {
	if e.Kind != SecretKeyEntry {
		return Secret{}, fmt.Errorf("entry %q is not a secret key", e.Alias)
	}
	params, err := parsePBEParams(e.sealed.params)
	if err != nil {
		return Secret{}, fmt.Errorf("entry %q: %w", e.Alias, err)
	}
	plain, err := params.decrypt(password, e.sealed.content)
	if err != nil {
		return Secret{}, fmt.Errorf("entry %q: %w", e.Alias, err)
	}
	defer clear(plain)
	s, err := decodeSecret(plain)
	if err != nil {
		if !bytes.HasPrefix(plain, []byte{0xac, 0xed}) { // one of 256 wrong passwords gives valid padding
			err = ErrPassword
		}
		return Secret{}, fmt.Errorf("entry %q: %w", e.Alias, err)
	}
	return s, nil
}

// oidPBE is com.sun.crypto.provider.KeyProtector's PBE_WITH_MD5_AND_DES3_CBC_OID.
var oidPBE = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 42, 2, 19, 1}

// PrivateKey decrypts a private-key entry. It returns the key's PKCS#8 form and the certificate chain, which begins
// with the key's own certificate.
func (e *Entry) PrivateKey(password secret.Bytes) (pkcs8 secret.Bytes, chain [][]byte, err error) {
	if e.Kind != PrivateKeyEntry {
		return nil, nil, fmt.Errorf("entry %q is not a private key", e.Alias)
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Content   []byte
	}
	if rest, err := asn1.Unmarshal(e.key, &info); err != nil || len(rest) != 0 {
		return nil, nil, fmt.Errorf("entry %q: the key is not a DER EncryptedPrivateKeyInfo", e.Alias)
	}
	if !info.Algorithm.Algorithm.Equal(oidPBE) {
		return nil, nil, fmt.Errorf("entry %q: the key is encrypted with %s, only %s (%s) is known", e.Alias,
			info.Algorithm.Algorithm, oidPBE, pbeAlgorithm)
	}
	params, err := parsePBEParams(info.Algorithm.Parameters.FullBytes)
	if err != nil {
		return nil, nil, fmt.Errorf("entry %q: %w", e.Alias, err)
	}
	plain, err := params.decrypt(password, info.Content)
	if err != nil {
		return nil, nil, fmt.Errorf("entry %q: %w", e.Alias, err)
	}
	return plain, e.chain, nil
}

// JCEKS is a keystore in memory. No other goroutine may use it while one changes it. Clone is cheap, so make
// changes on a copy.
type JCEKS struct {
	// Iterations is the PBE iteration count of new entries; 0 means DefaultIterations.
	Iterations int

	entries map[string]*Entry // by alias in lower case, as Java looks them up
}

// NewJCEKS returns an empty keystore.
func NewJCEKS() *JCEKS { return &JCEKS{entries: make(map[string]*Entry)} }

// Clone copies the keystore. The copies share the entries, which never change.
func (s *JCEKS) Clone() *JCEKS {
	return &JCEKS{Iterations: s.Iterations, entries: maps.Clone(s.entries)}
}

// Aliases returns the aliases of all entries, sorted.
func (s *JCEKS) Aliases() []string {
	list := make([]string, 0, len(s.entries))
	for _, e := range s.entries {
		list = append(list, e.Alias)
	}
	slices.Sort(list)
	return list
}

// Entry returns the entry of that alias, or nil. As in Java, upper and lower case are the same.
func (s *JCEKS) Entry(alias string) *Entry { return s.entries[claviger.FoldName(alias)] }

// Delete removes the entry of that alias, if there is one.
func (s *JCEKS) Delete(alias string) { delete(s.entries, claviger.FoldName(alias)) }

// SetKey sets the entry of the alias to a key, as Java writes a javax.crypto.spec.SecretKeySpec. It replaces an
// earlier entry.
func (s *JCEKS) SetKey(alias, algorithm string, material, password secret.Bytes, created time.Time) error {
	plain, err := encodeSecretKey(algorithm, material)
	if err != nil {
		return fmt.Errorf("entry %q: %w", alias, err)
	}
	return s.seal(alias, plain, password, created)
}

// SetHadoopMetadata sets the entry of the alias to Hadoop's metadata of a key (JSON), as Java writes a
// JavaKeyStoreProvider$KeyMetadata.
func (s *JCEKS) SetHadoopMetadata(alias string, json []byte, password secret.Bytes, created time.Time) error {
	plain, err := encodeHadoopMetadata(json)
	if err != nil {
		return fmt.Errorf("entry %q: %w", alias, err)
	}
	return s.seal(alias, plain, password, created)
}

// seal encrypts plain, wipes it, and sets the entry.
func (s *JCEKS) seal(alias string, plain []byte, password secret.Bytes, created time.Time) error {
	defer clear(plain)
	if _, err := appendMUTF8(nil, alias); err != nil {
		return fmt.Errorf("entry %.100q: %w", alias, err)
	}
	params, err := newPBEParams(s.Iterations)
	if err != nil {
		return err
	}
	der, err := asn1.Marshal(params)
	if err != nil {
		return err
	}
	content, err := params.encrypt(password, plain)
	if err != nil {
		return err
	}
	raw, err := encodeSealed(der, content)
	if err != nil {
		return fmt.Errorf("entry %q: %w", alias, err)
	}
	alias = claviger.FoldName(alias)
	s.entries[alias] = &Entry{
		Alias: alias, Created: created.Truncate(time.Millisecond), Kind: SecretKeyEntry,
		raw: raw, sealed: sealed{params: der, content: content},
	}
	return nil
}

// jceksDigest returns the check at the end of the file: SHA-1 of the password in UTF-16BE, a fixed phrase, and all
// other bytes of the file.
func jceksDigest(password secret.Bytes, body []byte) [sha1.Size]byte {
	h := sha1.New()
	for _, u := range utf16.Encode([]rune(string(password))) {
		_, _ = h.Write([]byte{byte(u >> 8), byte(u)})
	}
	_, _ = h.Write([]byte("Mighty Aphrodite"))
	_, _ = h.Write(body)
	return [sha1.Size]byte(h.Sum(nil))
}

// Marshal returns the content of the keystore's file. Entries that were read and not changed keep their bytes.
func (s *JCEKS) Marshal(password secret.Bytes) ([]byte, error) {
	b := binary.BigEndian.AppendUint32(nil, jceksMagic)
	b = binary.BigEndian.AppendUint32(b, jceksVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(s.entries)))
	for _, alias := range slices.Sorted(maps.Keys(s.entries)) {
		e := s.entries[alias]
		var err error
		b = binary.BigEndian.AppendUint32(b, uint32(e.Kind))
		if b, err = appendMUTF8(b, e.Alias); err != nil {
			return nil, fmt.Errorf("entry %.100q: %w", e.Alias, err)
		}
		b = binary.BigEndian.AppendUint64(b, uint64(e.Created.UnixMilli()))
		b = append(b, e.raw...)
	}
	sum := jceksDigest(password, b)
	if b = append(b, sum[:]...); len(b) > MaxJCEKS {
		return nil, fmt.Errorf("the keystore would have %d bytes, at most %d are allowed", len(b), MaxJCEKS)
	}
	return b, nil
}

// ParseJCEKS reads a keystore and checks it with the password. As Java does, it also reads a JKS file, which has the
// same form and no secret keys; Marshal then makes a JCEKS of it. If the check fails, ParseJCEKS decrypts a few
// entries, to decide between a wrong password (ErrPassword) and a damaged file (*DamagedError). Otherwise it decrypts
// no entry. For a file of another format or a file that ends too early, it returns a *FormatError.
func ParseJCEKS(data []byte, password secret.Bytes) (*JCEKS, error) {
	if len(data) > MaxJCEKS {
		return nil, &FormatError{Format: "JCEKS", Offset: MaxJCEKS, What: "the file is larger than " +
			strconv.Itoa(MaxJCEKS) + " bytes"}
	}
	r := &jceksReader{b: data}
	s, err := r.store()
	if err != nil {
		return nil, err
	}
	body, sum := data[:r.off], data[r.off:]
	if len(sum) != sha1.Size {
		return nil, r.errorf("%d bytes after the last entry, want the %d bytes of a SHA-1 check", len(sum), sha1.Size)
	}
	want := jceksDigest(password, body)
	if subtle.ConstantTimeCompare(want[:], sum) != 1 {
		return nil, s.digestError(password)
	}
	return s, nil
}

// digestError returns the error of a failed check. It tries the password on a few entries, to decide between a wrong
// password and a damaged file.
func (s *JCEKS) digestError(password secret.Bytes) error {
	tries := 0
	for _, alias := range s.Aliases() {
		e := s.Entry(alias)
		if e.Kind != SecretKeyEntry {
			continue
		}
		if params, err := parsePBEParams(e.sealed.params); err != nil || params.Iterations > DefaultIterations {
			continue // skip an entry that takes too long
		}
		if got, err := e.Open(password); err == nil {
			got.Material.Wipe()
			return &DamagedError{Alias: e.Alias}
		}
		if tries++; tries == 3 {
			break
		}
	}
	return ErrPassword
}

type jceksReader struct {
	b   []byte
	off int
}

func (r *jceksReader) errorf(format string, args ...any) error {
	return &FormatError{Format: "JCEKS", Offset: r.off, What: fmt.Sprintf(format, args...)}
}

func (r *jceksReader) take(n uint64, part string) ([]byte, error) {
	if n > uint64(len(r.b)-r.off) {
		return nil, r.errorf("the file ends inside %s", part)
	}
	s := r.b[r.off : r.off+int(n)]
	r.off += int(n)
	return s, nil
}

func (r *jceksReader) uint32(part string) (uint32, error) {
	s, err := r.take(4, part)
	if err != nil {
		return 0, err
	}
	return binary.BigEndian.Uint32(s), nil
}

func (r *jceksReader) utf(part string) (string, error) {
	s, err := r.take(2, part)
	if err != nil {
		return "", err
	}
	if s, err = r.take(uint64(binary.BigEndian.Uint16(s)), part); err != nil {
		return "", err
	}
	text, err := decodeMUTF8(s)
	if err != nil {
		return "", r.errorf("%s: %v", part, err)
	}
	return text, nil
}

func (r *jceksReader) store() (*JCEKS, error) {
	switch Sniff(r.b) {
	case JCEKSFormat, JKSFormat:
	default:
		return nil, notJCEKS(r.b)
	}
	r.off = 4
	version, err := r.uint32("the version")
	if err != nil {
		return nil, err
	}
	if version != jceksVersion {
		return nil, r.errorf("version %d, only %d is known", version, jceksVersion)
	}
	count, err := r.uint32("the number of entries")
	if err != nil {
		return nil, err
	}
	if uint64(count)*jceksMinEntry > uint64(len(r.b)-r.off) {
		return nil, r.errorf("the file ends before its %d entries", count)
	}
	s := NewJCEKS()
	for range count {
		e, err := r.entry()
		if err != nil {
			return nil, err
		}
		s.entries[claviger.FoldName(e.Alias)] = e // of two equal aliases the later counts, as in Java
	}
	return s, nil
}

func (r *jceksReader) entry() (*Entry, error) {
	kind, err := r.uint32("an entry's kind")
	if err != nil {
		return nil, err
	}
	e := &Entry{Kind: EntryKind(kind)}
	if e.Alias, err = r.utf("an alias"); err != nil {
		return nil, err
	}
	date, err := r.take(8, "entry "+quote(e.Alias))
	if err != nil {
		return nil, err
	}
	e.Created = time.UnixMilli(int64(binary.BigEndian.Uint64(date)))
	start := r.off
	switch e.Kind {
	case PrivateKeyEntry:
		err = r.privateKey(e)
	case CertificateEntry:
		var cert []byte
		cert, err = r.certificate(e.Alias)
		e.chain = [][]byte{cert}
	case SecretKeyEntry:
		var n int
		e.sealed, n, err = decodeSealed(r.b[r.off:])
		if err != nil {
			r.locate(err, e.Alias)
			return nil, err
		}
		r.off += n
	default:
		return nil, r.errorf("entry %s is of the unknown kind %d", quote(e.Alias), kind)
	}
	if err != nil {
		return nil, err
	}
	e.raw = r.b[start:r.off]
	return e, nil
}

// locate converts an offset in an entry's object to an offset in the file.
func (r *jceksReader) locate(err error, alias string) {
	var f *FormatError
	if errors.As(err, &f) {
		f.Format, f.Offset, f.What = "JCEKS", f.Offset+r.off, "entry "+quote(alias)+": "+f.What
	}
}

func (r *jceksReader) privateKey(e *Entry) error {
	part := "entry " + quote(e.Alias)
	n, err := r.uint32(part)
	if err != nil {
		return err
	}
	if n > maxCertificate {
		return r.errorf("%s: private key of %d bytes, at most %d are allowed", part, n, maxCertificate)
	}
	if e.key, err = r.take(uint64(n), part); err != nil {
		return err
	}
	if n, err = r.uint32(part); err != nil {
		return err
	}
	if n > maxChain {
		return r.errorf("%s: chain of %d certificates, at most %d are allowed", part, n, maxChain)
	}
	for range n {
		cert, err := r.certificate(e.Alias)
		if err != nil {
			return err
		}
		e.chain = append(e.chain, cert)
	}
	return nil
}

func (r *jceksReader) certificate(alias string) ([]byte, error) {
	part := "entry " + quote(alias)
	if _, err := r.utf(part); err != nil { // the type, "X.509"
		return nil, err
	}
	n, err := r.uint32(part)
	if err != nil {
		return nil, err
	}
	if n > maxCertificate {
		return nil, r.errorf("%s: certificate of %d bytes, at most %d are allowed", part, n, maxCertificate)
	}
	return r.take(uint64(n), part)
}

// quote returns text of a file for messages: shortened, and without control characters.
func quote(s string) string { return fmt.Sprintf("%.100q", s) }
