// Command claviger is a Hadoop-compatible key management server. Its encryption-zone keys are made in an HSM and never
// leave it. It also migrates from any other Hadoop KMS. Each group of subcommands has a file of its
// own, and so has each large subcommand.
package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"claviger"
	"claviger/buildinfo"
	"claviger/owner"
	"claviger/pkcs11"
	"claviger/pkcs11/worker"
	"claviger/secret"
	"claviger/terminal"
)

// Exit codes. They are part of the command line's contract.
const (
	exitOK      = 0
	exitFailed  = 1 // an error; standard error says which
	exitUsage   = 2 // the command line is wrong
	exitRefused = 3 // the work was refused, or a person must decide something
	exitPIN     = 4 // the HSM has refused the PIN; it locks the PIN after a few wrong ones
)

// exitError carries an exit code through cobra. Its err is nil if the output has said everything.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func main() {
	worker.Main(os.Args) // does not return in a process that a server has started for an HSM's library
	os.Exit(run(os.Args[1:]))
}

// run runs a command line and returns the exit code. Tests call it too.
func run(args []string) int {
	if err := secret.NoCoreDumps(); err != nil {
		fmt.Fprintf(os.Stderr, "claviger: secrets could get into a core file: %v\n", err)
		return exitFailed
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := newRootCommand()
	root.SetArgs(args)
	cmd, err := terminal.Misspelt(root, args)
	if err == nil {
		cmd, err = root.ExecuteContextC(ctx)
	}
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	if coded := new(exitError); errors.As(err, &coded) && coded.err == nil {
		return code
	}
	// If standard error cannot be written, there is no other place for the message.
	_ = terminal.Fprintf(cmd.ErrOrStderr(), "claviger: %v%s\n", err, processUser(err))
	if code == exitUsage {
		fmt.Fprintf(cmd.ErrOrStderr(), "Run '%s --help' for usage.\n", cmd.CommandPath())
	}
	return code
}

// exitCode returns the exit code for an error.
func exitCode(err error) int {
	var coded *exitError
	switch {
	case pkcs11.IsPINRefused(err):
		return exitPIN
	case errors.As(err, &coded):
		return coded.code
	case errors.As(err, new(*terminal.UsageError)):
		return exitUsage
	case errors.As(err, new(*claviger.RefusedError)), errors.As(err, new(*owner.RootError)):
		return exitRefused
	}
	return exitFailed
}

// processUser returns the user of this process as a part of a message, if the system has refused something to this
// user; the same command may work for another user. It adds how to get the right, unless the error says it.
func processUser(err error) string {
	if !errors.Is(err, fs.ErrPermission) {
		return ""
	}
	uid := os.Geteuid()
	text := fmt.Sprintf(" (this process runs as uid %d", uid)
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		text = fmt.Sprintf(" (this process runs as user %s, uid %d", u.Username, uid)
	}
	if remedy := secret.Admit(err); remedy != "" && !strings.Contains(err.Error(), "chown ") {
		text += "; " + remedy
	}
	return text + ")"
}

// helpTexts has the help text and the examples of each command, see terminal.Describe.
//
//go:embed help/*.txt
var helpTexts embed.FS

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:          "claviger",
		Short:        "A Hadoop KMS with keys in an HSM, and the migration to it",
		SilenceUsage: true, SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(newKMSCommand(), newMigrateCommand(), newHSMCommand(), newKeyCommand(), newTrusteeCommand(),
		newOrgtoolCommand(), newKeyHSMCommand(), newACLCommand(), newAuditCommand(), newMetastoreCommand(),
		newEDEKCommand(), newDoctorCommand(), newBenchCommand(), newDemoCommand(), newVersionCommand(),
		terminal.Completion(), terminal.Manual(buildinfo.Read().Date))
	root.Version = buildinfo.Read().String()
	root.SetVersionTemplate("{{.Version}}\n")
	terminal.CompleteFolders(root, "conf", "confdir", "hdfs-conf", "keytrustee", "dir")
	terminal.CheckUsage(root)
	texts, err := fs.Sub(helpTexts, "help")
	if err = errors.Join(err, terminal.Describe(root, texts)); err != nil {
		panic(err) // the texts are part of the program, and each test of a command reads them
	}
	terminal.Help(root)
	return root
}
