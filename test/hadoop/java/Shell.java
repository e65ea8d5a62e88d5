import java.io.BufferedReader;
import java.io.ByteArrayOutputStream;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.Base64;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.crypto.key.KeyShell;
import org.apache.hadoop.fs.FsShell;
import org.apache.hadoop.hdfs.HdfsConfiguration;
import org.apache.hadoop.hdfs.tools.CryptoAdmin;
import org.apache.hadoop.hdfs.tools.DFSAdmin;
import org.apache.hadoop.security.token.DtUtilShell;
import org.apache.hadoop.util.Tool;
import org.apache.hadoop.util.ToolRunner;

/**
 * Runs Hadoop's own command-line tools one after the other in one JVM. Each line of standard input is a command: its
 * words in base64, separated by spaces. Each line of standard output is the result of a command: the exit status, and
 * its standard output and standard error in base64, or "-" if it printed nothing.
 */
public class Shell {
  public static void main(String[] unused) throws Exception {
    PrintStream answers = System.out;
    PrintStream log = System.err;
    BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.US_ASCII));
    for (String line; (line = in.readLine()) != null; ) {
      String[] words = line.split(" ");
      for (int i = 0; i < words.length; i++) {
        words[i] = new String(Base64.getDecoder().decode(words[i]), StandardCharsets.UTF_8);
      }
      ByteArrayOutputStream out = new ByteArrayOutputStream();
      ByteArrayOutputStream err = new ByteArrayOutputStream();
      System.setOut(new PrintStream(out, true, "UTF-8"));
      System.setErr(new PrintStream(err, true, "UTF-8"));
      int exit;
      try {
        exit = run(words[0], Arrays.copyOfRange(words, 1, words.length));
      } catch (Throwable t) {
        // The tool's own main would also print this.
        t.printStackTrace(System.err);
        exit = 255;
      } finally {
        System.out.flush();
        System.err.flush();
        System.setOut(answers);
        System.setErr(log);
      }
      answers.println(exit + " " + encode(out) + " " + encode(err));
      answers.flush();
    }
  }

  private static int run(String tool, String[] args) throws Exception {
    Configuration conf = new HdfsConfiguration();
    return ToolRunner.run(conf, tool(tool, conf), args);
  }

  private static Tool tool(String name, Configuration conf) {
    switch (name) {
      case "key":
        return new KeyShell();
      case "fs":
        return new FsShell(conf);
      case "crypto":
        return new CryptoAdmin(conf);
      case "dfsadmin":
        return new DFSAdmin(conf);
      case "dtutil":
        return new DtUtilShell();
      case "images":
        return new Images();
      case "tokens":
        return new Tokens();
      default:
        throw new IllegalArgumentException("no tool named " + name);
    }
  }

  private static String encode(ByteArrayOutputStream b) {
    return b.size() == 0 ? "-" : Base64.getEncoder().encodeToString(b.toByteArray());
  }
}
