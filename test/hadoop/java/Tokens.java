import java.io.File;
import org.apache.hadoop.conf.Configured;
import org.apache.hadoop.fs.FileSystem;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.security.Credentials;
import org.apache.hadoop.security.token.Token;
import org.apache.hadoop.util.Tool;

/**
 * "FILE RENEWER" writes the delegation tokens that a job needs to work with the file system, as a job's submitter
 * collects them: the file system's own, and the one of the KMS that it names. `hdfs fetchdt` and `hadoop dtutil get`
 * collect the first alone. Prints a token's kind and service on each line.
 */
public class Tokens extends Configured implements Tool {
  @Override
  public int run(String[] args) throws Exception {
    Credentials all = new Credentials();
    FileSystem.get(getConf()).addDelegationTokens(args[1], all);
    for (Token<?> t : all.getAllTokens()) {
      System.out.println(t.getKind() + " " + t.getService());
    }
    all.writeTokenStorageFile(new Path(new File(args[0]).toURI()), getConf());
    return 0;
  }
}
