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
	"claviger/shellword"
)

// isSoftHSM reports whether a module is SoftHSM 2, whose tokens are folders of files. If SoftHSM may not read the
// files of a token, it shows an empty slot instead. A user may then initialise that slot, and so make a second token
// of the same name.
func isSoftHSM(module string) bool { return strings.Contains(filepath.Base(module), "softhsm") }

// softHSMFault returns the reason why this process cannot use the token that a configuration names: a file that it
// may not read, a folder that it cannot write to, or a damaged file. It returns nil if there is no such reason, or
// if the module is not SoftHSM.
func softHSMFault(c *Config) error {
	if !isSoftHSM(c.Module) {
		return nil
	}
	folders, unreadable, err := tokenFolders()
	if err != nil {
		var missing *fileFault
		if errors.As(err, &missing) {
			return missing
		}
		if !errors.Is(err, fs.ErrPermission) {
			return nil
		}
		return fmt.Errorf("SoftHSM shows a token only to users who may read its files: %w; run as the user who owns "+
			"them, or give this user rights to them (%s); make no new token", err, secret.Admit(err))
	}
	for _, f := range folders {
		if f.fits(c) && !f.damaged() {
			return f.fault()
		}
	}
	for _, f := range folders {
		if f.damaged() && (c.Serial == "" || serialOf(f.path) == c.Serial) {
			return &fileFault{fmt.Sprintf("the SoftHSM token in %s is damaged: its token.object is empty or gone, as "+
				"SoftHSM leaves it when a process is killed while it writes that file; the keys beside it are whole",
				f.path), "Put token.object back from a backup of the folder; make no new token", nil}
		}
	}
	if len(unreadable) == 0 {
		return nil
	}
	maker := "softhsm2-util --init-token --free --label LABEL"
	if c.TokenLabel != "" {
		maker = fmt.Sprintf("softhsm2-util --init-token --free --label %s", shellword.Quote(c.TokenLabel))
	}
	return fmt.Errorf("SoftHSM shows a token only to users who may read its files, and this user may not read all of "+
		"them (%w): either it is the token in %s, so run as that user or give this user rights to the folder (%s); "+
		"or it was not made yet, so make it as this user (%s)",
		unreadable[0].err, strings.Join(named(unreadable), ", "), secret.Admit(unreadable[0].err), maker)
}

// fileFault is a fault of the files of SoftHSM's tokens, with its cure.
type fileFault struct {
	fault, cure string
	err         error // of the system; nil if there is none
}

func (f *fileFault) Error() string { return f.fault + ". " + f.cure }
func (f *fileFault) Unwrap() error { return f.err }

// CureOf returns the cure of an error that this package explains by the files of SoftHSM's tokens; "" of others.
func CureOf(err error) string {
	var f *fileFault
	if errors.As(err, &f) {
		return f.cure
	}
	return ""
}

const (
	// writeTimeout is the longest time that Open waits while another process writes a token's file. A write takes
	// milliseconds, and longer if many processes start at once.
	writeTimeout = time.Second
	// firstPause is the first pause between two attempts.
	firstPause = 10 * time.Millisecond
)

// readDuringWrite reports whether err, of an attempt to find a token and to log in, may come from a token.object
// that was read while another process wrote it. SoftHSM 2.6 writes the file at each login, and empties it before it
// locks it. A process that reads the file at that moment finds no token, or a token without label or PIN, or gets
// CKR_GENERAL_ERROR. If so, the file is now still empty, or it is whole and the token's folder has no fault.
func readDuringWrite(c *Config, err error) bool {
	var hidden notShown
	if !isSoftHSM(c.Module) || !errors.As(err, &hidden) && !errors.Is(err, errNoUserPIN) &&
		!errors.Is(err, p11.Error(p11.CKR_USER_PIN_NOT_INITIALIZED)) &&
		!errors.Is(err, p11.Error(p11.CKR_GENERAL_ERROR)) {
		return false
	}
	folders, _, _ := tokenFolders() // with an error there are none
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
	label []byte // the content of token.object, which contains the label
	err   error  // why token.object cannot be read
}

// unreadableNamed is the largest number of folders of other users that a message names.
const unreadableNamed = 3

func named(folders []tokenFolder) (list []string) {
	for i, f := range folders {
		if i == unreadableNamed {
			return append(list, fmt.Sprintf("and %d more", len(folders)-i))
		}
		list = append(list, f.path+ownerNote(f.path))
	}
	return list
}

// ownerNote names the owner of a file in brackets; "" if the owner is not known.
func ownerNote(path string) string {
	if secret.Rights(path) == "" {
		return ""
	}
	return " (of " + secret.Rights(path) + ")"
}

// fits reports whether f is the folder of the token that a configuration names. The folder's name ends with the
// token's serial number. SoftHSM fills the label up with blanks.
func (f tokenFolder) fits(c *Config) bool {
	if c.Serial == "" && c.TokenLabel == "" {
		return false
	}
	const labelSize = 32 // bytes
	label := append([]byte(c.TokenLabel), bytes.Repeat([]byte(" "), max(0, labelSize-len(c.TokenLabel)))...)
	return (c.Serial == "" || serialOf(f.path) == c.Serial) &&
		(c.TokenLabel == "" || bytes.Contains(f.label, label))
}

// damaged reports whether the folder holds objects, and an empty token.object or none.
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

// fault returns an error if this process may not read a file of the token, or cannot write to the folder. SoftHSM
// writes to the folder at each change.
func (f tokenFolder) fault() error {
	if err := f.checkReadable(); err != nil {
		return err
	}
	err := access(f.path, unix.W_OK)
	switch {
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("SoftHSM cannot change the token: %w; let the server write to that folder (systemd: "+
			"ReadWritePaths=%s), or mount it writable", err, filepath.Dir(f.path))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("SoftHSM cannot change the token: %w%s; cure: %s", err, ownerNote(f.path), f.cure())
	}
	return nil
}

// checkReadable returns an error that counts the files of the token that this process may not read. SoftHSM does not
// show the objects in such files.
func (f tokenFolder) checkReadable() error {
	entries, err := os.ReadDir(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the token was destroyed meanwhile; rights are not the reason
	}
	if err != nil {
		return fmt.Errorf("SoftHSM cannot read the token's folder: %w%s; cure: %s", err, ownerNote(f.path), f.cure())
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
		// name an object rather than its lock file
		if first == nil || objects == 1 && strings.HasSuffix(path, ".object") {
			first = fmt.Errorf("%w%s", err, ownerNote(path))
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("SoftHSM keeps each object in a file, and user %s may not read %d files of the token's folder, "+
		"whose objects are there and not shown: %w; cure: %s",
		secret.CurrentUser(), n, first, f.cure())
}

// cure returns the cure if this user lacks rights to the token's files. SoftHSM makes each file with mode 0600, so
// another mode of the folder or a group does not help. If the folder belongs to a user other than root, the token
// is mostly that user's.
func (f tokenFolder) cure() string {
	chown := shellword.Command("chown", "-R", secret.CurrentUser(), f.path)
	info, err := os.Stat(f.path)
	if err != nil {
		return chown
	}
	if owner := secret.Owner(info); owner != "root" && owner != secret.CurrentUser() {
		return fmt.Sprintf("run as user %s (sudo -u %[1]s), where that is the server's user; or %s", owner, chown)
	}
	return chown
}

// access returns an error if this process has no right of that mode to a file.
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

// Hidden returns an error if the token has objects that it does not show, because this user may not read their
// files. Root makes such objects on a token of another user. Hidden returns nil if there are none, or if the token
// is not of SoftHSM.
func (t *Token) Hidden() error {
	if f, ok := t.folder(); ok {
		return f.checkReadable()
	}
	return nil
}

// folder returns the folder of an open SoftHSM token.
func (t *Token) folder() (tokenFolder, bool) {
	if !isSoftHSM(t.cfg.Module) {
		return tokenFolder{}, false
	}
	serial := t.Info().Serial
	folders, _, _ := tokenFolders() // with an error there are none
	for _, f := range folders {
		if serialOf(f.path) == serial {
			return f, true
		}
	}
	return tokenFolder{}, false
}

// explained adds the fault of the token's files to an error of SoftHSM, since SoftHSM itself returns only
// CKR_GENERAL_ERROR.
func (t *Token) explained(err error) error {
	var domain *claviger.Error
	if err == nil || errors.As(err, &domain) || damageOf(err) <= suspect {
		return err
	}
	if f, ok := t.folder(); ok {
		if fault := f.fault(); fault != nil {
			return fmt.Errorf("%w: %w", err, fault)
		}
	}
	return err
}

// tokenFolders returns the folders of all tokens. unreadable are the folders whose token.object this process may not
// read; they are in all too. err means that the settings or the folder of all tokens cannot be read.
func tokenFolders() (all, unreadable []tokenFolder, err error) {
	file, err := os.Open(softHSMConf())
	if err != nil {
		return nil, nil, err
	}
	defer file.Close()
	tokens := tokenDirectory(file)
	entries, err := os.ReadDir(tokens)
	if errors.Is(err, fs.ErrNotExist) {
		err = &fileFault{fmt.Sprintf("SoftHSM's folder of tokens %s does not exist%s", tokens, softHSMSeen()),
			"Put the folder back, or mount its file system, or correct directories.tokendir", err}
	}
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
			unreadable = append(unreadable, f)
		}
		all = append(all, f)
	}
	return all, unreadable, nil
}

// tokenDirectory reads the folder of all tokens from SoftHSM's settings, as SoftHSM's SimpleConfigLoader does: a '#'
// anywhere begins a comment, a second '=' ends the value, and the last line with the name counts.
func tokenDirectory(settings io.Reader) string {
	tokens := "/var/lib/softhsm/tokens/" // the default
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

// readStart reads the first 64 KiB of a file. A token.object is smaller.
func readStart(path string) ([]byte, error) {
	f, err := os.Open(path) //nolint:gosec // SoftHSM's settings name the path
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

// softHSMConf returns the path of the settings that SoftHSM reads.
func softHSMConf() string {
	if conf := os.Getenv("SOFTHSM2_CONF"); conf != "" {
		return conf
	}
	if home, err := os.UserHomeDir(); err == nil {
		conf := filepath.Join(home, ".config/softhsm2/softhsm2.conf")
		if _, err := os.Stat(conf); err == nil || errors.Is(err, fs.ErrPermission) {
			return conf
		}
	}
	for _, conf := range softHSMSettings {
		if _, err := os.Stat(conf); err == nil || errors.Is(err, fs.ErrPermission) {
			return conf
		}
	}
	return softHSMSettings[0]
}

// softHSMSeen names the settings that SoftHSM used, for messages. A shell with other settings than the server's may
// show other tokens, or none.
func softHSMSeen() string {
	if conf := os.Getenv("SOFTHSM2_CONF"); conf != "" {
		return ", by the settings that SOFTHSM2_CONF names (" + conf +
			"): a server with other settings has other tokens"
	}
	return ", by the settings in " + softHSMConf() + " (SOFTHSM2_CONF is not set here): where the server's unit sets " +
		"SOFTHSM2_CONF, set it here too, and make no other token"
}

// softHSMSettings are the paths of SoftHSM's settings that the library was built with: Debian's, and Fedora's.
var softHSMSettings = []string{"/etc/softhsm/softhsm2.conf", "/etc/softhsm2.conf"}
