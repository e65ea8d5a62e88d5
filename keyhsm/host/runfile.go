package host

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"claviger/shellword"
)

// Process is the process that serves a folder.
type Process struct {
	PID int    `json:"pid"`
	URL string `json:"url"`
}

// runFile is the file that names the Process that serves a folder. That process locks the file. The kernel
// releases the lock when the process ends, so the file of a killed process does not count.
type runFile struct{ *os.File }

func runPath(dir string) string { return filepath.Join(dir, "keyhsm.run") }

// claim locks the run file of a folder for this process, and empties it. Otherwise the file would name the
// process that served the folder before, until write is called.
func claim(dir string) (*runFile, error) {
	f, err := os.OpenFile(runPath(dir), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// A reader of the file holds a shared lock for a moment.
	for range 10 {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) //nolint:gosec // a descriptor is small
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		if errors.Is(err, syscall.EWOULDBLOCK) {
			err = fmt.Errorf("a Key HSM runs with the folder %s already; claviger keyhsm status --conf %s shows it",
				dir, shellword.Quote(dir))
		}
		return nil, errors.Join(err, f.Close())
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &runFile{f}, nil
}

// write records that this process serves at url.
func (r *runFile) write(url string) error {
	data, err := json.Marshal(Process{os.Getpid(), url})
	if err != nil {
		return err
	}
	if err := r.Truncate(0); err != nil {
		return err
	}
	_, err = r.WriteAt(append(data, '\n'), 0)
	return err
}

// Running returns the process that serves a folder now, or an error if there is none.
func Running(dir string) (Process, error) {
	var p Process
	none := fmt.Errorf("no Key HSM runs with the folder %s; start it: claviger keyhsm start --conf %s", dir,
		shellword.Quote(dir))
	f, err := os.Open(runPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return p, none
	}
	if err != nil {
		return p, err
	}
	defer f.Close()
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB) //nolint:gosec // a descriptor is small
	if err == nil {
		return p, none // Close releases the lock
	}
	if !errors.Is(err, syscall.EWOULDBLOCK) {
		return p, err
	}
	data, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(data, &p); err != nil || p.PID <= 0 || p.URL == "" {
		return p, fmt.Errorf("the Key HSM of folder %s is starting; try again", dir)
	}
	return p, nil
}
