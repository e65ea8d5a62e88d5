package bench

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Processes are the processes of a server on this machine: first the server's own, then those that it has started.
type Processes []int

// ProcessesOf returns a process with all that it has started.
func ProcessesOf(pid int) Processes { return withChildren(Processes{pid}) }

func withChildren(p Processes) Processes {
	for i := 0; i < len(p); i++ { // the list grows
		for _, child := range childrenOf(p[i]) {
			if !slices.Contains(p, child) {
				p = append(p, child)
			}
		}
	}
	return p
}

// localProcesses returns the processes of the server that listens at a port of this machine; none if the system does
// not show them to this user. The format of /proc/net/tcp is in proc_pid_net(5): local address, state 0A for a
// listener, and the inode that /proc/PID/fd names.
func localProcesses(port string) Processes {
	inodes := listeners(port)
	if len(inodes) == 0 {
		return nil
	}
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return nil
	}
	var found Processes
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || !slices.Contains(inodes, to) {
			continue // another user's process, or one that has ended
		}
		pid, err := strconv.Atoi(strings.Split(link, "/")[2])
		if err == nil && !slices.Contains(found, pid) {
			found = append(found, pid)
		}
	}
	return withChildren(found)
}

// listeners returns the sockets that listen at a port, as /proc/PID/fd names them.
func listeners(port string) (inodes []string) {
	n, err := strconv.Atoi(port)
	if err != nil {
		return nil
	}
	const listens = "0A"
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		table, err := os.ReadFile(file)
		if err != nil {
			continue // a system without IPv6, or not Linux
		}
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == listens && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", n)) {
				inodes = append(inodes, "socket:["+f[9]+"]")
			}
		}
	}
	return inodes
}

func childrenOf(pid int) (children []int) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return nil
	}
	for _, file := range lists {
		list, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range strings.Fields(string(list)) {
			if n, err := strconv.Atoi(field); err == nil {
				children = append(children, n)
			}
		}
	}
	return children
}

// tick is the unit of processor time in /proc/PID/stat. It is 10 ms on all architectures that Go supports.
const tick = 10 * time.Millisecond

// CPU returns the user and system time of the processes until now. ok is false if they cannot be read.
func (p Processes) CPU() (sum time.Duration, ok bool) {
	for _, pid := range p {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return 0, false
		}
		// The second field is the command in parentheses, and may contain spaces.
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) < 13 {
			return 0, false
		}
		user, err1 := strconv.Atoi(f[11])
		system, err2 := strconv.Atoi(f[12])
		if errors.Join(err1, err2) != nil {
			return 0, false
		}
		sum += time.Duration(user+system) * tick
	}
	return sum, len(p) > 0
}

// memory returns the resident memory of the processes in MiB, and 0 if it cannot be read. A process that the server has
// started shares the pages of its program, so only its own pages count.
func (p Processes) memory() (sum float64) {
	field := "VmRSS:"
	for _, pid := range p {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(status)) {
			if v, ok := strings.CutPrefix(line, field); ok {
				if kib, err := strconv.Atoi(strings.Fields(v)[0]); err == nil {
					sum += float64(kib) / 1024
				}
			}
		}
		field = "RssAnon:"
	}
	return sum
}

// isLoopback reports whether all addresses of a host are of this machine's loopback.
func isLoopback(host string) bool {
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback()
	}
	addresses, err := net.LookupIP(host) //nolint:noctx // the resolver has a time limit
	return err == nil && len(addresses) > 0 &&
		!slices.ContainsFunc(addresses, func(ip net.IP) bool { return !ip.IsLoopback() })
}
