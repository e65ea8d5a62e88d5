package pkcs11

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"claviger"
	"claviger/secret"
)

// isSoftHSM tells whether a module is SoftHSM 2, whose tokens are folders of files.
// It hides a token whose files it may not read behind an empty slot, and initialises
// the slot anew if it is told to: a second token of the same name.
func isSoftHSM(module string) bool { return strings.Contains(filepath.Base(module), "softhsm") }

// softHSMFault says what keeps this process from the token that a configuration names: a
// file that it may not read, or a folder that it cannot write to. It is nil where nothing
// does, or where the module is another.
func softHSMFault(c *Config) error {
	if !isSoftHSM(c.Module) {
		return nil
	}
	folders, shut, err := tokenFolders()
	if err != nil {
		if !errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return fmt.Errorf("SoftHSM shows a token only to users who may read its files: %w; run as the user who owns them, or give this user rights to them (%s); make no new token", err, secret.Admit(err))
	}
	for _, f := range folders {
		if f.fits(c) {
			return f.fault()
		}
	}
	for _, f := range folders {
		if f.damaged() && (c.Serial == "" || serialOf(f.path) == c.Serial) {
			return fmt.Errorf("the SoftHSM token in %s is damaged: its token.object is empty or gone, as SoftHSM leaves it when a process is killed while it writes that file; the keys beside it are whole. "+
				"Put token.object back from a backup of the folder; make no new token", f.path)
		}
	}
	if len(shut) == 0 {
		return nil
	}
	maker := "softhsm2-util --init-token --free --label LABEL"
	if c.TokenLabel != "" {
		maker = fmt.Sprintf("softhsm2-util --init-token --free --label %q", c.TokenLabel)
	}
	return fmt.Errorf("SoftHSM shows a token only to users who may read its files, and this user may not read all of them (%w): either it is the token in %s, so run as that user or give this user rights to the folder (%s); or it was not made yet, so make it as this user (%s)",
		shut[0].err, strings.Join(named(shut), ", "), secret.Admit(shut[0].err), maker)
}

const (
	// writtenWithin bounds how long an opening waits for another process to write a token's
	// file, which takes milliseconds: longer, where many start at once.
	writtenWithin = time.Second
	// writtenPause is the first pause between two attempts.
	writtenPause = 10 * time.Millisecond
)

// readWhileWritten tells whether err, of an attempt to find a token and to log in, may come from
// a token.object that was read while another process wrote it. SoftHSM 2.6 does that at each
// login, and empties the file before it locks it; a process that reads it then sees no token,
// one without label or PIN, or CKR_GENERAL_ERROR. The file is empty still, or it is whole and
// the token's folder has no fault.
func readWhileWritten(c *Config, err error) bool {
	var hidden notShown
	if !isSoftHSM(c.Module) || !errors.As(err, &hidden) && !errors.Is(err, errNoUserPIN) &&
		!errors.Is(err, p11.Error(p11.CKR_USER_PIN_NOT_INITIALIZED)) && !errors.Is(err, p11.Error(p11.CKR_GENERAL_ERROR)) {
		return false
	}
	folders, _, err := tokenFolders()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(folders, func(f tokenFolder) bool {
		if f.err != nil {
			return errors.Is(f.err, fs.ErrNotExist)
		}
		return len(f.label) == 0 || (f.fits(c) || c.TokenLabel == "" && c.Serial == "") && f.fault() == nil
	})
}

// tokenFolder is the folder of a SoftHSM token.
type tokenFolder struct {
	path  string
	label []byte // the file token.object, which has the label in it
	err   error  // why that cannot be read
}

// shutShown is how many folders of other users a message names.
const shutShown = 3

func named(folders []tokenFolder) (list []string) {
	for i, f := range folders {
		if i == shutShown {
			return append(list, fmt.Sprintf("and %d more", len(folders)-i))
		}
		list = append(list, f.path+ownedBy(f.path))
	}
	return list
}

// ownedBy names the owner of a file in brackets; "" where that is not known.
func ownedBy(path string) string {
	if secret.Rights(path) == "" {
		return ""
	}
	return " (of " + secret.Rights(path) + ")"
}

// fits tells whether it is the folder of the token that a configuration names. SoftHSM
// takes the serial number from the end of the folder's name, and fills the label up with
// blanks.
func (f tokenFolder) fits(c *Config) bool {
	if c.Serial == "" && c.TokenLabel == "" {
		return false
	}
	const labelSize = 32 // bytes
	label := append([]byte(c.TokenLabel), bytes.Repeat([]byte(" "), max(0, labelSize-len(c.TokenLabel)))...)
	return (c.Serial == "" || serialOf(f.path) == c.Serial) &&
		(c.TokenLabel == "" || bytes.Contains(f.label, label))
}

// damaged tells whether the folder holds objects, and nothing that says of which token.
func (f tokenFolder) damaged() bool {
	if f.err != nil && !errors.Is(f.err, fs.ErrNotExist) || len(f.label) > 0 {
		return false
	}
	entries, err := os.ReadDir(f.path)
	return err == nil && slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		return strings.HasSuffix(e.Name(), ".object") && e.Name() != "token.object"
	})
}

func serialOf(path string) string {
	const size = 16
	name := strings.ReplaceAll(filepath.Base(path), "-", "")
	return name[max(0, len(name)-size):]
}

// fault says which file of the token this process may not read, or that it cannot write
// to the folder, which SoftHSM does at each change.
func (f tokenFolder) fault() error {
	if err := f.unread(); err != nil {
		return err
	}
	err := access(f.path, unix.W_OK)
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("SoftHSM cannot change the token: %w; let the server write to that folder (systemd: ReadWritePaths=%s), or mount it writable", err, filepath.Dir(f.path))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("SoftHSM cannot change the token: %w%s; cure: %s", err, ownedBy(f.path), f.take())
	}
	return nil
}

// unread says which files of the token this process may not read. SoftHSM shows their
// objects as absent.
func (f tokenFolder) unread() error {
	entries, err := os.ReadDir(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was destroyed meanwhile, which is no matter of rights
	}
	if err != nil {
		return fmt.Errorf("SoftHSM cannot read the token's folder: %w%s; cure: %s", err, ownedBy(f.path), f.take())
	}
	var first error
	n, objects := 0, 0
	for _, e := range entries {
		path := filepath.Join(f.path, e.Name())
		err := access(path, unix.R_OK)
		if !errors.Is(err, fs.ErrPermission) {
			continue
		}
		n++
		if strings.HasSuffix(path, ".object") {
			objects++
		}
		if first == nil || objects == 1 && strings.HasSuffix(path, ".object") { // an object says more than its lock
			first = fmt.Errorf("%w%s", err, ownedBy(path))
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("SoftHSM keeps each object in a file, and user %s may not read %d files of the token's folder, whose objects are there and not shown: %w; cure: %s",
		secret.Ourselves(), n, first, f.take())
}

// take is the cure where this user lacks rights to the token's files: SoftHSM makes each
// for its maker alone (0600), so neither a mode nor a group helps. A folder of another
// user than root is mostly that user's token.
func (f tokenFolder) take() string {
	chown := fmt.Sprintf("chown -R %s %s", secret.Ourselves(), f.path)
	info, err := os.Stat(f.path)
	if err != nil {
		return chown
	}
	if owner := secret.Owner(info); owner != "root" && owner != secret.Ourselves() {
		return fmt.Sprintf("run as user %s (sudo -u %[1]s), where that is the server's user; or %s", owner, chown)
	}
	return chown
}

// access asks the system for rights to a file.
func access(path string, mode uint32) error {
	if err := unix.Access(path, mode); err != nil {
		op := "open"
		if mode == unix.W_OK {
			op = "write to"
		}
		return &fs.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

// Hidden says which objects of the token are there and not shown, since this user may not
// read their files: those that root made on a token of another user. It is nil where there
// are none, and where the token is not SoftHSM's.
func (t *Token) Hidden() error {
	if f, ok := t.folder(); ok {
		return f.unread()
	}
	return nil
}

// folder is that of an open SoftHSM token.
func (t *Token) folder() (tokenFolder, bool) {
	if !isSoftHSM(t.cfg.Module) {
		return tokenFolder{}, false
	}
	serial := t.Info().Serial
	folders, _, err := tokenFolders()
	if err != nil || serial == "" {
		return tokenFolder{}, false
	}
	for _, f := range folders {
		if serialOf(f.path) == serial {
			return f, true
		}
	}
	return tokenFolder{}, false
}

// explained adds to an error of SoftHSM, which says no more than CKR_GENERAL_ERROR, what
// is wrong with its files.
func (t *Token) explained(err error) error {
	var domain *claviger.Error
	if err == nil || errors.As(err, &domain) || harm(err) <= suspect {
		return err
	}
	if f, ok := t.folder(); ok {
		if fault := f.fault(); fault != nil {
			return fmt.Errorf("%w: %w", err, fault)
		}
	}
	return err
}

// tokenFolders are the folders of the tokens. Those whose token.object this process may
// not read are in shut also; err says that it may not read what comes before them.
func tokenFolders() (all, shut []tokenFolder, err error) {
	conf, err := softHSMConf()
	if err != nil {
		return nil, nil, err
	}
	file, err := os.Open(conf)
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	tokens := tokenDirectory(file)
	entries, err := os.ReadDir(tokens)
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		f := tokenFolder{path: filepath.Join(tokens, e.Name())}
		f.label, f.err = readStart(filepath.Join(f.path, "token.object"))
		if errors.Is(f.err, fs.ErrPermission) {
			shut = append(shut, f)
		}
		all = append(all, f)
	}
	return all, shut, nil
}

// tokenDirectory reads the folder of all tokens from SoftHSM's settings, as its
// SimpleConfigLoader does: a '#' anywhere begins a comment, a second '=' ends the value,
// the last line counts.
func tokenDirectory(settings io.Reader) string {
	tokens := "/var/lib/softhsm/tokens/" // where the settings name none
	for in := bufio.NewScanner(settings); in.Scan(); {
		line, _, _ := strings.Cut(in.Text(), "#")
		name, value, _ := strings.Cut(line, "=")
		value, _, _ = strings.Cut(value, "=")
		if value = strings.TrimSpace(value); value != "" && strings.TrimSpace(name) == "directories.tokendir" {
			tokens = value
		}
	}
	return tokens
}

// readStart reads a file, but no more than a token.object has.
func readStart(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // the place is SoftHSM's
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

// softHSMConf is where SoftHSM looks for its settings.
func softHSMConf() (string, error) {
	if conf := os.Getenv("SOFTHSM2_CONF"); conf != "" {
		return conf, nil
	}
	if home, err := os.UserHomeDir(); err == nil {
		conf := filepath.Join(home, ".config/softhsm2/softhsm2.conf")
		if _, err := os.Stat(conf); err == nil || errors.Is(err, fs.ErrPermission) {
			return conf, err
		}
	}
	for _, conf := range softHSMSettings {
		if _, err := os.Stat(conf); err == nil || errors.Is(err, fs.ErrPermission) {
			return conf, err
		}
	}
	return softHSMSettings[0], nil
}

// softHSMSeen says by which settings SoftHSM was asked: another shell than the server's
// may show other tokens, or none.
func softHSMSeen() string {
	if conf := os.Getenv("SOFTHSM2_CONF"); conf != "" {
		return ", by the settings that SOFTHSM2_CONF names (" + conf + "): a server with other settings has other tokens"
	}
	conf, _ := softHSMConf()
	return ", by the settings in " + conf + " (SOFTHSM2_CONF is not set here): where the server's unit sets SOFTHSM2_CONF, set it here too, and make no other token"
}

// softHSMSettings are where distributions have SoftHSM's settings, which its library was
// built with: Debian's, and Fedora's.
var softHSMSettings = []string{"/etc/softhsm/softhsm2.conf", "/etc/softhsm2.conf"}
